"""The sequence mixers: one file each, found by the registry in dnassm.mixer."""
