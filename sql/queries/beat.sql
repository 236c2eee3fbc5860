-- A sensor is being evaluated here; hosts of its that have been silent for a day are forgotten. Nobody waits for the
-- disk: a beat that a crash of the server loses is a second old.
with forgotten as (
    delete from stats_pipeline.sensor_beat
    where sensor = %(sensor)s and host <> %(host)s and beaten_at < clock_timestamp() - interval '1 day'
)
insert into stats_pipeline.sensor_beat (sensor, host, version, beaten_at)
select %(sensor)s, %(host)s, %(version)s, clock_timestamp()
from (select set_config('synchronous_commit', 'off', true)) as careless
on conflict (sensor, host) do update
set version = excluded.version, beaten_at = excluded.beaten_at;
