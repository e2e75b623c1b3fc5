"""What a test says, and how it is shown.

evaluation: accuracies and intervals     view_scores: fused scores of several views     report: the page of a run
drawing, terminal: pictures and tables alike     attention_panel, answer_film: what a method looked at
"""
