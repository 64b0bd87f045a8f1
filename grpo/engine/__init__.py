"""What keeps a run alive: set-up, loop, states, guards, several processes, memory plan."""
