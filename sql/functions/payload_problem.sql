-- The problem of a job's payload, as a sentence that names the field; null if it is valid.
create or replace function stats_pipeline.payload_problem(payload jsonb) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
select case
    when payload is null or jsonb_typeof(payload) <> 'object' then 'payload must be a JSON object'
    when octet_length(payload::text) > 65536 then
        format('payload is %s bytes long; at most 65536 are allowed', octet_length(payload::text))
    when payload @? '$.**{21}' then 'payload is nested more than 20 levels deep'
    when jsonb_typeof(payload -> 'triggeredBy') is distinct from 'string'
        or payload ->> 'triggeredBy' not in ('post-match', 'admin', 'cron') then
        'triggeredBy must be one of post-match, admin, cron'
    when jsonb_typeof(payload -> 'requestId') is distinct from 'string'
        or length(payload ->> 'requestId') not between 1 and 200 then
        'requestId must be a text of 1 to 200 characters'
    when jsonb_typeof(payload -> 'timestamp') not in ('string', 'null')
        or payload ->> 'timestamp' !~ '^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?$' then
        'timestamp must be an ISO 8601 date and time'
    when jsonb_typeof(payload -> 'matchId') not in ('number', 'null')
        or (jsonb_typeof(payload -> 'matchId') = 'number' and payload ->> 'matchId' !~ '^[1-9]\d{0,17}$') then
        'matchId must be a positive integer'
    when jsonb_typeof(payload -> 'userId') not in ('string', 'null') then 'userId must be a text'
    when stats_pipeline.uuid_problem(payload -> 'tenantId') then 'tenantId must be a UUID'
    when stats_pipeline.uuid_problem(payload -> 'retryOf') then 'retryOf must be a UUID'
    when payload @? '$.** ? (@ > 1.7e308 || @ < -1.7e308)' then
        'payload has a number beyond 1.7e308, which most programs cannot hold: write it as a text'
end;
$$;

revoke all on function stats_pipeline.payload_problem(jsonb) from public, anon, authenticated;
