-- Create the queue if there is none; returns whether it did.
create or replace function stats_pipeline.ensure_queue() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if to_regclass('pgmq.q_stats_update') is not null then
        return false;
    end if;
    perform pgmq.create('stats_update');
    alter table pgmq.q_stats_update enable row level security;
    alter table pgmq.a_stats_update enable row level security;
    return true;
end;
$$;

revoke all on function stats_pipeline.ensure_queue() from public, anon, authenticated;
