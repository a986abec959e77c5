"""What a report is made of: the leaderboard and the weight of its flags."""
