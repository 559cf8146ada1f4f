"""The parts that `dnassm.data.simulate` puts a genome together from."""
