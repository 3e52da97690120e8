"""Makes ``storescp`` a command of twistd."""

from twisted.application.service import ServiceMaker

storescp = ServiceMaker("storescp", "storescp.tap", "A DICOM Storage SCP: receives images.", "storescp")
