-- An empty inventory: schema 2, as the migrations up to 20260201000000 leave it.
CREATE TABLE IF NOT EXISTS "schema_migrations" (version varchar(128) primary key);
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, pieces INTEGER NOT NULL);
CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    version TEXT NOT NULL,
    earlier INTEGER NOT NULL,
    site TEXT NOT NULL DEFAULT 'main'
);
INSERT INTO item (name, pieces) VALUES ('RACK', 4), ('DISK', 96), ('CABLE', 412);
INSERT INTO schema_migrations (version) VALUES ('20260101000000'), ('20260201000000');
