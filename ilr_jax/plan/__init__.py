"""What an experiment takes on devices that are not there: its programs, compiled for a described machine, never run."""
