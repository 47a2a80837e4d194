BEGIN;
UPDATE reports SET body = body WHERE false;
DELETE FROM reports;
INSERT INTO reports VALUES (:'body');
COMMIT;
