"""Draw the cars of the built-in sample: body shapes, paint, scenery, pose and light."""
