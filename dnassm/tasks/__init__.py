"""The objectives: one file each, found by the registry in dnassm.task."""
