INSERT INTO reading (version, earlier) SELECT '1.1.0', count(*) FROM reading;
