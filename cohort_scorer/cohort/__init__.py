"""Who is in, who is out and why, and what happened to them. Sees neither pixels nor scores."""
