-- That a sensor is evaluated, where, and by which version of this project: one row for each sensor and host, written
-- about once a second. The free half of the page takes the new version of a row, so that no index is touched.
create table stats_pipeline.sensor_beat (
    sensor text not null,
    host text not null,
    version text not null,
    beaten_at timestamptz not null,
    primary key (sensor, host)
) with (fillfactor = 50);
alter table stats_pipeline.sensor_beat enable row level security;

-- They read Dagster's tables.
drop function if exists stats_pipeline.last_sensor_tick();
drop function if exists stats_pipeline.stopped_instigators(text);
