-- The columns of the job table with a type that the pipeline does not support: the app may have created the table.
select
    c.attname as name,
    format_type(c.atttypid, c.atttypmod) as type,
    needed.type as needed,
    case
        when needed.type = 'timestamp with time zone' and c.atttypid = 'timestamp'::regtype then
            quote_ident(c.attname) || ' at time zone ' || quote_literal('UTC')
        else quote_ident(c.attname) || '::text::' || needed.type
    end as conversion
from (values
    ('id', 'uuid', '{uuid}'),
    ('job_type', 'text', '{text,varchar}'),
    ('job_payload', 'jsonb', '{jsonb}'),
    ('status', 'text', '{text,varchar}'),
    ('started_at', 'timestamp with time zone', '{timestamptz}'),
    ('completed_at', 'timestamp with time zone', '{timestamptz}'),
    ('error_message', 'text', '{text,varchar}'),
    ('results', 'jsonb', '{jsonb}'),
    ('created_at', 'timestamp with time zone', '{timestamptz}'),
    ('updated_at', 'timestamp with time zone', '{timestamptz}'),
    ('tenant_id', 'uuid', '{uuid}'),
    ('retry_of', 'uuid', '{uuid}'),
    ('attempts', 'integer', '{int4}'),
    ('run_id', 'text', '{text,varchar}'),
    ('msg_id', 'bigint', '{int8}')
) as needed (name, type, taken)
join pg_catalog.pg_attribute as c
    on c.attrelid = to_regclass('public.background_job_status') and c.attname = needed.name and not c.attisdropped
where not c.atttypid::regtype = any(needed.taken::regtype[])
order by c.attnum;
