-- Make the queue if it was dropped, or not restored. The jobs that wait get messages from the reconciler.
select stats_pipeline.ensure_queue() as made;
