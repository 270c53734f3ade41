INSERT INTO reading (version, earlier) SELECT '1.0.0', count(*) FROM reading;
