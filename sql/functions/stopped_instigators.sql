-- The names of our sensors, or schedules, that somebody has stopped in Dagster: nothing of theirs is done until they
-- are started again. `kind` is Dagster's word, SENSOR or SCHEDULE; none in a database without Dagster's storage.
create or replace function stats_pipeline.stopped_instigators(kind text) returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if to_regclass('dagster.instigators') is null then
        return '{}';
    end if;
    return array(
        select i.instigator_body::jsonb #>> '{origin,job_name}'
        from dagster.instigators as i
        where i.status = 'STOPPED' and i.instigator_type = kind
            and i.instigator_body::jsonb
                #>> '{origin,external_repository_origin,repository_location_origin,location_name}' = 'stats_pipeline'
        order by 1
    );
end;
$$;

revoke all on function stats_pipeline.stopped_instigators(text) from public, anon, authenticated;
