INSERT INTO reading (version, earlier, site) SELECT '1.2.0', count(*), 'north' FROM reading;
