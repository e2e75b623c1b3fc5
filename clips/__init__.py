"""Which pixels a network sees.

frame_sources: frame folders, video files, LMDB      video_split, list_files, labelled_videos: which videos there are
frame_sampling: which frames of a video              transforms: crops, sizes, pixel statistics
episodes: what a task asks for                       clip_dataset: labelled clips and test views
read_ahead: worker processes
"""
