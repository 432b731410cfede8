"""The history of the schema. Migrations are never edited once released, only followed by others."""
