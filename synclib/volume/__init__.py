"""Block volumes and their snapshots."""
