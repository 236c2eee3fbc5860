-- One thing that was set aside has been done.
delete from stats_pipeline.set_aside where what = %(what)s and key = %(key)s;
