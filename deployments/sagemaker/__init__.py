"""The service as an endpoint of SageMaker: `bincount deploy sagemaker`, through boto3 alone."""
