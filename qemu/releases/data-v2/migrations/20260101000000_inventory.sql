-- migrate:up
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, pieces INTEGER NOT NULL);
CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
    version TEXT NOT NULL,
    earlier INTEGER NOT NULL
);
INSERT INTO item (name, pieces) VALUES ('rack', 4), ('disk', 96), ('cable', 412);

-- migrate:down
DROP TABLE reading;
DROP TABLE item;
