-- A later state of a row has a later `updated_at`, even if transactions overlap or the clock is set back: listeners use
-- it as the version of the row.
create or replace function stats_pipeline.job_stamped() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    new.updated_at := greatest(clock_timestamp(), stats_pipeline.readable(old.updated_at) + interval '1 microsecond');
    return new;
end;
$$;

revoke all on function stats_pipeline.job_stamped() from public, anon, authenticated;

-- After the app's own trigger for this column, which sets the start of the transaction.
create or replace trigger zz_stats_pipeline_job_stamped
before update on public.background_job_status
for each row execute function stats_pipeline.job_stamped();
