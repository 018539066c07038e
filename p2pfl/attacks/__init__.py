"""What somebody who only listens, or who leads and cheats, can find out about the examples of others, and how well."""
