"""storescp: a DICOM Storage SCP (PS3.4 Annex B) on Twisted, run as ``twistd -n storescp``."""

__version__ = "0.1.0"

IMPLEMENTATION_CLASS_UID = "2.25.102124799591124169256092169629157993616"
"""Who we are to a peer and in File Meta (PS3.7 D.3.3.2, PS3.10 §7.1); of the UUID-derived root, PS3.5 B.2."""

IMPLEMENTATION_VERSION_NAME = f"STORESCP_{__version__}"
"""The version beside it: 1..16 characters of the default repertoire (PS3.7 D.3.3.2.3)."""
