"""Programs that make examples files: nuScenes, a teacher's reasons and their review."""
