"""One thin file an entry point: parse arguments, open the run, call carmodel, log what came out."""
