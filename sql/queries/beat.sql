-- Record a sensor's sign of life on this host; its hosts that have been silent for a day are deleted. The commit does
-- not wait for the disk: a crash of the server loses only a second-old beat.
with forgotten as (
    delete from stats_pipeline.sensor_beat
    where sensor = %(sensor)s and host <> %(host)s and beaten_at < clock_timestamp() - interval '1 day'
)
insert into stats_pipeline.sensor_beat (sensor, host, version, beaten_at)
select %(sensor)s, %(host)s, %(version)s, clock_timestamp()
from (select set_config('synchronous_commit', 'off', true)) as careless
on conflict (sensor, host) do update
set version = excluded.version, beaten_at = excluded.beaten_at;
