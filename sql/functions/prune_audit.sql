-- Delete up to `batch` rows of the audit that are older than `days`. Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_audit(days integer, batch integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    old constant bigint[] := array(
        select a.id
        from stats_pipeline.audit as a
        where a.at < now() - make_interval(days => days)
        order by a.at
        limit batch
    );
begin
    delete from stats_pipeline.audit as a where a.id = any(old);
    return cardinality(old);
end;
$$;

revoke all on function stats_pipeline.prune_audit(integer, integer) from public, anon, authenticated;
