// A sender made of dcmjs-dimse: node dcmjs_send.js '{"host": ..., "port": ..., "files": [...], ...}'
//
// Sends the files, or an echo, with the options given to Client.send, and prints what it was told as JSON, in the last
// line. "contexts" are SOP classes proposed besides, "abort" has it abort in the place of the first answer, "get" means
// C-GET, which proposes to be the SCP of storage, "commit" is a SOP class and instance of which storage commitment is
// asked: it aborts when it has confirmed the report. The keys of "tls" are files.

'use strict';

const fs = require('fs');
const { Client, Dataset, association, constants, log, requests, responses } = require('dcmjs-dimse');

const given = JSON.parse(process.argv[2]);
log.setLevel('error');

const client = new Client();
const said = { statuses: [], events: [], reports: [] };

for (const file of given.files || []) {
  client.addRequest(new requests.CStoreRequest(file));
}
if (given.get) {
  const request = requests.CGetRequest.createStudyGetRequest('1.2.3');
  request.setAddStorageSopClassesToAssociation(true);
  client.addRequest(request);
} else if (given.commit) {
  const [sopClass, sopInstance] = given.commit;
  const request = new requests.NActionRequest('1.2.840.10008.1.20.1', '1.2.840.10008.1.20.1.1', 1);
  const item = { ReferencedSOPClassUID: sopClass, ReferencedSOPInstanceUID: sopInstance };
  request.setDataset(new Dataset({ TransactionUID: '1.2.3.4', ReferencedSOPSequence: [item] }));
  client.addRequest(request);
  client.on('nEventReportRequest', (report, respond) => {
    said.reports.push(report.getEventTypeId());
    const response = responses.NEventReportResponse.fromRequest(report);
    response.setStatus(constants.Status.Success);
    respond(response);
    client.abort();
  });
  client.on('closed', () => process.exit(0));
} else if (!given.files) {
  client.addRequest(new requests.CEchoRequest());
}
for (const uid of given.contexts || []) {
  const context = new association.PresentationContext(0, uid);
  context.addTransferSyntaxUid(constants.TransferSyntax.ExplicitVRLittleEndian);
  client.addAdditionalPresentationContext(context, true);
}
for (const request of client.requests) {
  request.on('response', (response) => {
    said.statuses.push(response.getStatus());
  });
}
for (const name of ['associationAccepted', 'associationReleased', 'associationRejected', 'networkError', 'closed']) {
  client.on(name, (event) => {
    said.events.push(name === 'networkError' ? `${name}: ${event}` : name);
    if (name === 'associationAccepted' && given.abort) {
      client.abort();
    }
  });
}
process.on('exit', () => {
  process.stdout.write(`${JSON.stringify(said)}\n`);
});

const options = given.options || {};
if (given.tls) {
  options.securityOptions = { rejectUnauthorized: true };
  for (const [key, file] of Object.entries(given.tls)) {
    options.securityOptions[key] = fs.readFileSync(file);
  }
}
client.send(given.host, given.port, 'DCMJS', 'STORESCP', options);
