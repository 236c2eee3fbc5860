-- At most 200 characters of the text, each that would break a line, control a terminal or turn the direction of writing
-- as a space.
create or replace function stats_pipeline.audit_text(given text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
select left(regexp_replace(given,
    E'[\\u0001-\\u001f\\u007f-\\u009f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]', ' ', 'g'), 200);
$$;

revoke all on function stats_pipeline.audit_text(text) from public, anon, authenticated;
