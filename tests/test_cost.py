"""What an image of 8 KiB costs, in calls rather than in time: these do not depend on the machine.

The budgets stand a little above what is needed. Who goes beyond one should know why, and measure.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from types import FrameType

from twisted.logger import LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from bench.objects import CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN, ObjectStream, object_template
from storescp import dimse
from storescp.dataset_head import HeadReader
from storescp.measurements import Measurements
from tests.conversation import World, c_store, p_data
from tests.test_element_runs import forget

TESTS = str(pathlib.Path(__file__).parent)


def calls(run: Callable[[], object]) -> tuple[int, int]:
    """How many functions *run* calls, of Python and of C: without those of tests, and without who observes the log."""
    counts = {"call": 0, "c_call": 0}
    observing = 0  # how deep in the publisher of log events

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal observing
        if event == "call" and (observing or frame.f_code is LogPublisher.__call__.__code__):
            observing += 1
        elif event == "return" and observing:
            observing -= 1
        elif not observing and event in counts:
            counts[event] += not frame.f_code.co_filename.startswith(TESTS)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return counts["call"], counts["c_call"]


def data_sets(count: int) -> list[bytes]:
    """*count* CT images of 8 KiB, the head with some 75 elements."""
    stream = ObjectStream("12345678901234567890", 0)
    template = object_template(8192, 0)
    stream.use(template)
    images = []
    for number in range(count):
        stream.advance(number)
        images.append(b"".join(stream.pieces)[template.head_offset :])
    return images


class CostTests(SynchronousTestCase):
    """Calls per image, once the server has got into its stride."""

    def assertWithin(self, cost: tuple[int, int], budget: tuple[int, int]) -> None:
        self.assertTrue(cost[0] <= budget[0] and cost[1] <= budget[1], f"{cost} is beyond {budget}")
        self.assertGreater(min(cost), 0)  # else nothing was counted

    def test_protocol_and_services(self) -> None:
        """From the bytes received to the fragments handed to storage, and from the outcome to the response."""
        receive, respond = self.message(World())
        self.assertWithin(receive, (35, 30))
        self.assertWithin(respond, (35, 31))

    def test_observed(self) -> None:
        """Metrics add a dozen calls to that, and leave as few to whoever does not want any."""
        plain, observed = (
            self.message(World(measurements=one)) for one in (None, Measurements.of_one_process())
        )
        more = tuple(
            sum(one) - sum(other)
            for one, other in zip(zip(*observed, strict=True), zip(*plain, strict=True), strict=True)
        )
        self.assertWithin((more[0], more[1]), (10, 6))

    def message(self, world: World) -> tuple[tuple[int, int], tuple[int, int]]:
        """What the third message of an association costs: to receive it, and to answer it."""
        peer = world.associated()
        for number, image in enumerate(data_sets(3)):
            command = c_store(f"1.2.{number:08d}", number, sop_class_uid=CT_IMAGE_STORAGE)
            message = p_data(3, True, dimse.encode_command(command)) + p_data(3, False, image)
            receive = calls(lambda message=message: peer.protocol.dataReceived(message))  # type: ignore[misc]
            respond = calls(world.memory.instances[-1].end)
            self.assertEqual(peer.statuses(), [dimse.Status.SUCCESS])
        return receive, respond

    def test_head(self) -> None:
        """Of a series that has begun, the head is recognised, not walked over."""
        forget()
        images = data_sets(20)

        def read(image: bytes) -> None:
            reader = HeadReader(EXPLICIT_VR_LITTLE_ENDIAN)
            self.assertTrue(reader.feed(memoryview(image)))
            reader.finish()

        for image in images:
            cost = calls(lambda image=image: read(image))  # type: ignore[misc]
        self.assertWithin(cost, (16, 15))
