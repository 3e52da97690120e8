// A sender made of dcmjs-dimse: node dcmjs_send.js '{"host": ..., "port": ..., "files": [...], ...}'
//
// Sends the files, or an echo, with the options given to Client.send, and prints what it was told as JSON, in the last
// line. "contexts" are SOP classes proposed besides, "abort" has it abort in the place of the first answer, "get" means
// C-GET, which proposes to be the SCP of storage. The keys of "tls" are files.

'use strict';

const fs = require('fs');
const { Client, association, constants, log, requests } = require('dcmjs-dimse');

const given = JSON.parse(process.argv[2]);
log.setLevel('error');

const client = new Client();
const said = { statuses: [], events: [] };

for (const file of given.files || []) {
  client.addRequest(new requests.CStoreRequest(file));
}
if (given.get) {
  const request = requests.CGetRequest.createStudyGetRequest('1.2.3');
  request.setAddStorageSopClassesToAssociation(true);
  client.addRequest(request);
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
