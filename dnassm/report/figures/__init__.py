"""The drawings, one file per kind of artifact; matplotlib loads when something is drawn."""
