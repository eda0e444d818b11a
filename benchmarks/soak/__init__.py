"""Does it lose, hang or obey a stranger? Kills, damaged files, bombs, hostile text and starved machines, counted."""
