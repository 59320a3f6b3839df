"""LeRobot data sets v2.1 and v3.0: read, write, convert, verify, statistics. No torch."""
