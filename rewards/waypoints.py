"""Way-points of a completion: where the car will be at 0.5, 1.0, ..., 4.0 s."""

WAYPOINTS = 8           # one every SPACING seconds
SPACING = 0.5           # s
