SELECT CASE
    WHEN (SELECT count(*) FROM reading WHERE earlier <> id - 1) > 0 THEN 'rows are missing'
    WHEN NOT EXISTS (SELECT 1 FROM reading WHERE id = (SELECT max(id) FROM reading) AND version = '1.2.0'
        AND at > strftime('%s', 'now') - 4) THEN 'no new row of 1.2.0'
    ELSE 'healthy' END;
