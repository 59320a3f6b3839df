"""What is made of a flight record: report, blame, replay, episodes."""
