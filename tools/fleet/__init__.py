"""A node's life: the processes of a role, releases, first boots, and nodes on one machine."""
