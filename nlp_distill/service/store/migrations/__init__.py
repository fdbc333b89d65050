"""From the tables of one version to those of the next; run by `Database.migrate`."""
