-- migrate:up
ALTER TABLE reading ADD COLUMN site TEXT NOT NULL DEFAULT 'main';
UPDATE item SET name = upper(name);

-- migrate:down
UPDATE item SET name = lower(name);
ALTER TABLE reading DROP COLUMN site;
