"""`make bench`: how long each stage takes and how much memory it holds, against floors measured in the same run."""
