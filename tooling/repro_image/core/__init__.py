"""Values and rules: no files, network, clock, environment or subprocess."""
