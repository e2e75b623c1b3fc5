"""What a test says, and how it is shown.

evaluation: accuracies and intervals     view_scores: fused scores of several views     report, charts: the page of a run
runs, statistics, marks: what is read of runs, compared and said of a number            leaderboard: the page of many runs
episode_picture, panels, films: what a method looked at     drawing, tables, terminal, pages, style: the same look everywhere
"""
