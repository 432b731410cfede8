"""The database: tables, migrations, and the writes."""
