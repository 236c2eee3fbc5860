-- The five players with the most points, for the demo.
select name, games_played, wins, draws, losses, goals, win_percentage, fantasy_points, points_per_game
from public.aggregated_all_time_stats
order by fantasy_points desc, name
limit 5;
