CREATE TABLE reports (body text NOT NULL);

CREATE TABLE fence (lock text PRIMARY KEY, token bigint NOT NULL);

CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    mine bigint := current_setting('dlock.token');
BEGIN
    INSERT INTO fence AS f VALUES (tg_argv[0], mine)
    ON CONFLICT (lock) DO UPDATE
        SET token = mine
        WHERE f.token <= mine;
    IF NOT FOUND THEN
        RAISE 'token % is refused: a later holder of the lock % '
            'has been here', mine, tg_argv[0];
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER refuse_late
    BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON reports
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_late('report');
